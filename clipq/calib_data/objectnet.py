"""``objectnet:PATH``: the 113 classes of ObjectNet that ImageNet has too, without the red border of its images.

PATH is the published ``objectnet-1.0`` or the folder ``images`` in it; folders of the other 200 classes are left alone. Images are told
apart by ObjectNet's own 113 names, as published zero-shot accuracies are (wise-ft and CLIP_benchmark), not by the ImageNet names;
``facts/objectnet_classes.csv`` says which ImageNet classes each stands for. ObjectNet marks its images with a red border of one pixel,
to be removed before they are shown to a model; two are cut off, as ImageNet-Testbed (Taori et al. 2020) does.
"""

from __future__ import annotations

from clipq.calib_data.class_folders import check_class_folders, images_by_class
from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.imagenet import imagenet_templates, objectnet_classes
from clipq.calib_data.layout import existing_folder, read_templates
from clipq.calib_data.source import Source

BORDER = 2


def open_objectnet(rest: str, _split: str | None) -> Source:
    """Return the images of the shared classes.

    Raises:
        MissingDataError: The folder does not exist.
        UsageError: There is no class folder in it.
        DataError: One of the 113 classes is missing or has no images.
    """
    root = existing_folder(rest)
    root = root / "images" if (root / "images").is_dir() else root
    folders = [known.folder for known in objectnet_classes()]
    check_class_folders(root, "ObjectNet", folders, None, "Unpack the whole data set, or use imagefolder:PATH.")
    names, labels = images_by_class(root, folders)
    classnames = tuple(known.name for known in objectnet_classes())
    templates = read_templates(root, default=imagenet_templates())
    return FileSource(f"objectnet:{root}", root, names, labels, classnames=classnames, templates=templates, border=BORDER)
