"""How a given teacher sees images: their size and normalisation, and who says so."""

import dataclasses
from collections.abc import Sequence

from kdjax.models import names


@dataclasses.dataclass(frozen=True)
class TeacherView:
    """How a given teacher sees images, and where that comes from.

    What an argument says goes before what the network's library says of its pretrained
    weights; where neither says anything, the teacher sees what the student sees.

    Attributes:
        size: height and width; empty: the student's.
        mean: of each channel, on the scale 0 to 1; empty: the data set's.
        std: standard deviation of each channel, likewise.
        interpolation: how images are resized: 'bilinear' or 'bicubic'.
        size_by: who says the size: 'teacher_size', the network's own 'img_size', a
            library, or '' for nobody.
        norm_by: who says mean and deviation, likewise.
    """

    size: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    size_by: str = ""
    norm_by: str = ""

    def described(self, network: str, image_shape: tuple[int, int, int]) -> str:
        """Returns a line for people: a wrong normalisation is the usual mistake.

        Args:
            network: the teacher's name.
            image_shape: height, width and channels of what the student sees.
        """
        height, width, _ = image_shape
        if self.size:
            rows, columns = self.size
            # One source of both is named once, behind the normalisation.
            by = "" if self.size_by == self.norm_by else f"; {_by(self.size_by)}"
            size = f"{rows}x{columns} ({self.interpolation}{by})"
        else:
            size = f"{height}x{width} (as the student does)"
        if self.mean:
            mean, std = ("/".join(f"{x:g}" for x in v) for v in (self.mean, self.std))
            norm = f"mean {mean} and deviation {std} ({_by(self.norm_by)})"
        else:
            norm = "the data set's mean and deviation (as the student does)"
        open_ = [] if self.size_by in _FIXED else ["teacher_size"]
        open_ += [] if self.norm_by == _ASKED else ["teacher_mean", "teacher_std"]
        hint = f"; if it learned otherwise: {', '.join(open_)}" if open_ else ""
        return f"teacher {network} sees images of {size}, normalised by {norm}{hint}"


_FIXED = "teacher_size", "img_size"
_ASKED = "teacher_mean, teacher_std"


def _by(who: str) -> str:
    if who in names.LIBRARIES:
        return f"as {who} tells of its pretrained weights"
    return f"by {who}"


def of(
    network: str,
    size: Sequence[int] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> TeacherView:
    """Returns how a teacher sees images.

    Args:
        network: its name; of timm's and torchvision's networks the library tells how
            they learned to see.
        size: asked for: one side, or height and width; empty: not asked for.
        mean: asked for; empty: not.
        std: asked for, together with `mean`.
    """
    asked = TeacherView(
        size=tuple(size) * (2 if len(size) == 1 else 1),
        mean=tuple(mean),
        std=tuple(std),
        size_by="teacher_size" if size else "",
        norm_by=_ASKED if mean else "",
    )
    library = network.partition(":")[0]
    if library not in names.LIBRARIES:
        return asked
    from kdjax.models.foreign import zoo  # here: it imports the library

    reference = names.parse(network)
    known = zoo.view(library, reference.attribute, dict(reference.kwargs))
    if known is None:
        return asked
    view = dataclasses.replace(asked, interpolation=known.interpolation)
    if not size:
        by = "img_size" if "img_size" in reference.kwargs else library
        view = dataclasses.replace(view, size=known.size, size_by=by)
    if not mean:
        view = dataclasses.replace(
            view, mean=known.mean, std=known.std, norm_by=library
        )
    return view
