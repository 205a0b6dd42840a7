"""The formulas of the losses once more, in NumPy and without the library.

They take one example, and loop, where a paper has a sum.
"""

import math

import numpy as np

LABEL = 1  # of every example of a case


def softened(logits, temperature=1.0):
    powers = np.exp(logits / temperature)
    return powers / powers.sum()


def kl(p, q):
    return (p * np.log(p / q)).sum()


# Between logits.


def np_kd(s, t, temperature=4.0):
    return temperature**2 * kl(softened(t, temperature), softened(s, temperature))


def np_soft_cross_entropy(s, t, temperature=4.0):
    p_s, p_t = softened(s, temperature), softened(t, temperature)
    return -(p_t * np.log(p_s)).sum()


def np_logit_matching(s, t):
    return np.linalg.norm(s - t) ** 2


def np_dkd(s, t, temperature=4.0, alpha=1.0, beta=8.0, label=LABEL):
    p_s, p_t = softened(s, temperature), softened(t, temperature)
    target = kl(*(np.array([p[label], 1 - p[label]]) for p in (p_t, p_s)))
    others = [np.delete(p, label) / (1 - p[label]) for p in (p_t, p_s)]
    return temperature**2 * (alpha * target + beta * kl(*others))


def np_nkd(s, t, temperature=1.0, gamma=1.5, label=LABEL):
    target = -softened(t)[label] * np.log(softened(s)[label])
    n_s, n_t = (softened(np.delete(x, label), temperature) for x in (s, t))
    return target - gamma * temperature**2 * (n_t * np.log(n_s)).sum()


def np_ttm(s, t, power=0.1):
    powers = softened(t) ** power
    return kl(powers / powers.sum(), softened(s))


def np_wttm(s, t, power=0.2):
    return (softened(t) ** power).sum() * np_ttm(s, t, power)


def np_dist(student, teacher, temperature=1.0, beta=1.0, gamma=1.0):
    p, q = (
        np.stack([softened(row, temperature) for row in x]) for x in (student, teacher)
    )

    def correlation(x, y):
        x, y = x - x.mean(), y - y.mean()
        return x @ y / (np.linalg.norm(x) * np.linalg.norm(y) + 1e-8)

    def distance(x, y):
        return 1 - np.mean([correlation(*pair) for pair in zip(x, y, strict=True)])

    inter, intra = distance(p, q), distance(p.T, q.T)
    return temperature**2 * (beta * inter + gamma * intra)


def np_standardised_kd(s, t):
    s, t = ((z - z.mean()) / (1e-7 + z.std(ddof=1)) for z in (s, t))
    return np_kd(s, t, 2.0)


def np_mutual(s, t, eps=1e-8):
    p_1, p_2 = softened(s), softened(t)
    return (p_2 * np.log(eps + p_2 / (p_1 + eps))).sum()


def np_one(s, t, temperature=3.0, eps=1e-7):
    q = softened(t, temperature) + eps
    return temperature**2 * (q * (np.log(q) - np.log(softened(s, temperature)))).sum()


# Between maps.


def np_attention_map(features, power=2.0):
    height, width, channels = features.shape
    flat = np.zeros(height * width)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                flat[y * width + x] += abs(features[y, x, c]) ** power
    return flat / np.linalg.norm(flat)


def np_attention_transfer(s, t, power=2.0, norm="mean_square"):
    distance = np.linalg.norm(np_attention_map(s, power) - np_attention_map(t, power))
    return distance if norm == "l2" else distance**2 / (s.shape[0] * s.shape[1])


def np_attention_distance(s, t, norm="mean_square"):
    return {"l2": np.linalg.norm(s - t), "mean_square": ((s - t) ** 2).mean()}[norm]


def np_feature_mse(s, t):
    return np.linalg.norm(s - t) ** 2 / s.size


def np_pool(x, height, width):
    out = np.zeros((height, width, x.shape[2]))
    for i in range(height):
        for j in range(width):
            rows = slice(i * len(x) // height, int(np.ceil((i + 1) * len(x) / height)))
            right = int(np.ceil((j + 1) * x.shape[1] / width))
            columns = slice(j * x.shape[1] // width, right)
            out[i, j] = x[rows, columns].mean((0, 1))
    return out


def np_vid(s, t, log_scale, eps=1e-5):
    variance = np.log(1 + np.exp(log_scale)) + eps
    return np.mean(0.5 * ((s - t) ** 2 / variance + np.log(variance)))


def np_ab(s, t, margin=1.0):
    # As the published code writes it.
    inactive = (s + margin) ** 2 * ((s > -margin) & (t <= 0))
    active = (s - margin) ** 2 * ((s <= margin) & (t > 0))
    return (inactive + active).sum()


def np_factor_transfer(s, t, form="map", p1=2, p2=1):
    height, width = min(s.shape[0], t.shape[0]), min(s.shape[1], t.shape[1])
    units = []
    for x in (s, t):
        x = np_pool(x, height, width)
        x = (abs(x) ** p1).mean(axis=2) if form == "map" else x
        units.append(x / np.sqrt((x**2).sum()))
    return (abs(units[0] - units[1]) ** p2).mean()


def np_ofd(s, t, margin):
    t = np.maximum(t, margin)
    return ((s - t) ** 2 * ((s > t) | (t > 0))).sum()


def np_hierarchical_context(s, t, sizes=(4, 2, 1)):
    loss, total, weight = ((s - t) ** 2).mean(), 1.0, 1.0
    for size in sizes:
        if size >= len(s):
            continue
        weight /= 2
        difference = np_pool(s, size, size) - np_pool(t, size, size)
        loss += weight * (difference**2).mean()
        total += weight
    return loss / total


# Between channels.


def np_nst(s, t):
    s, t = (x.reshape(-1, x.shape[-1]) for x in (s, t))
    s, t = (x / np.sqrt((x**2).sum(axis=0)) for x in (s, t))

    def kernel(a, b):
        return np.mean([[(p @ q) ** 2 for q in b.T] for p in a.T])

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def np_fsp_matrix(top, bottom):
    matrix = np.zeros((top.shape[2], bottom.shape[2]))
    for y in range(len(top)):
        for x in range(top.shape[1]):
            matrix += np.outer(top[y, x], bottom[y, x])
    return matrix / (len(top) * top.shape[1])


def np_kdsvd(student, teacher, k):
    aligned = []
    for s, t in zip(student, teacher, strict=True):
        _, _, right = np.linalg.svd(s.reshape(-1, s.shape[-1]), full_matrices=False)
        v_s = right[: k + 3].T
        _, values, right = np.linalg.svd(
            t.reshape(-1, t.shape[-1]), full_matrices=False
        )
        v_t = right[:k].T
        v_t = v_t * np.where(v_t.sum(axis=0) < 0, -1, 1)
        weights = values[:k] / np.linalg.norm(values[:k])
        pairs = []
        for vector in v_t.T:
            cosines = v_s.T @ vector
            best = np.argmax(abs(cosines))
            pairs.append(np.sign(cosines[best]) * v_s[:, best])
        aligned.append((np.stack(pairs, axis=1) * weights, v_t * weights))
    loss = 0.0
    for pair, below in zip(aligned[1:], aligned[:-1], strict=True):
        for j in range(k):
            s, t = (
                np.exp(-((v[:, None, j] - w[None, :, j]) ** 2) / 8)
                for v, w in zip(pair, below, strict=True)
            )
            loss += ((s - t) ** 2).sum()
    return loss


# Between the relations within a batch.


def flat(x):
    return x.reshape(len(x), -1)


def huber(x):
    return np.where(abs(x) < 1, x**2 / 2, abs(x) - 0.5)


def np_similarity(student, teacher):
    grams = []
    for x in map(flat, (student, teacher)):
        rows = np.array([[a @ b for b in x] for a in x])
        grams.append([row / max(np.linalg.norm(row), 1e-12) for row in rows])
    return ((np.array(grams[0]) - grams[1]) ** 2).sum() / len(student) ** 2


def np_correlation(student, teacher, form="consecutive", gamma=0.4, order=2):
    batch = len(student)
    if form == "consecutive":
        gap = abs(student - teacher)
        return sum(gap[i] @ gap[i + 1] for i in range(batch - 1)) / (batch - 1)

    def kernel(a, b):
        x = 2 * gamma * (a @ b)
        series = [x**p / math.factorial(p) for p in range(order + 1)]
        return np.exp(-2 * gamma) * sum(series)

    pairs = [(i, j) for i in range(batch) for j in range(batch)]
    s, t = student, teacher
    gaps = [kernel(s[i], s[j]) - kernel(t[i], t[j]) for i, j in pairs]
    return (np.array(gaps) ** 2).sum() / batch**2


def np_rkd_distance(student, teacher):
    found = []
    for x in map(flat, (student, teacher)):
        d = np.array([[max(np.linalg.norm(a - b), 1e-6) for b in x] for a in x])
        np.fill_diagonal(d, 0)
        found.append(d / d[d > 0].mean())
    return huber(found[0] - found[1]).mean()


def np_rkd_angle(student, teacher):
    total, batch = 0.0, len(student)
    for i in range(batch):
        for j in range(batch):
            for k in range(batch):
                angles = []
                for x in map(flat, (student, teacher)):
                    e, f = x[j] - x[i], x[k] - x[i]
                    lengths = np.linalg.norm(e) * np.linalg.norm(f)
                    angles.append(e @ f / lengths if lengths else 0.0)
                total += huber(angles[0] - angles[1])
    return total / batch**3


def np_pkt(student, teacher, eps=1e-7):
    found = []
    for x in map(flat, (student, teacher)):
        x = np.array([row / (np.linalg.norm(row) + eps) for row in x])
        kernel = (x @ x.T + 1) / 2
        found.append(kernel / kernel.sum(axis=1, keepdims=True))
    p_s, p_t = found
    return (p_t * np.log((p_t + eps) / (p_s + eps))).sum() / len(student) ** 2


# Contrastive.


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def np_crd(out, num_data, eps=1e-7):
    """One row's loss, of exp(similarity / T) / Z, as the published code has it."""
    c = (len(out) - 1) / num_data
    loss = -np.log(out[0] / (out[0] + c + eps))
    for negative in out[1:]:
        loss -= np.log(c / (negative + c + eps))
    return loss


def np_select(teacher, targets, ratio):
    rank = []
    for row, target in zip(teacher, targets, strict=True):
        order = sorted(range(len(row)), key=lambda c: -row[c])
        rank.append(order.index(target))
    wrong = sum(r > 0 for r in rank)
    kept = len(rank) - wrong + int(wrong * ratio)
    chosen = sorted(range(len(rank)), key=lambda i: rank[i])[:kept]
    return np.isin(np.arange(len(rank)), chosen)
