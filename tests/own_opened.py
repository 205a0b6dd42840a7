"""Opens one's own data in the tests."""

from kdjax.data import own

SIZE = 16


def settings(path, name="folder", **options):
    return {"name": name, "path": str(path), "image_size": SIZE, **options}


def opened(path, name="folder", vary=None, **options):
    return own.open_own(settings(path, name, **options), vary)


def streamed(path, name="folder", **options):
    return opened(path, name, memory_share=0.0, **{"workers": 0, **options})
