"""The class-name tables of the data sets that public detectors are trained on.

Data only. Which table fits is decided by how many classes a graph scores; nothing here looks at a
file.
"""

from __future__ import annotations

_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)
COCO_80: tuple[str, ...] = tuple(_COCO.split(","))
"""The 80 classes of COCO 2017 without gaps, as the YOLO family numbers them: 0 is person."""

# COCO's own ids run to 90; these ten were never used in a released annotation.
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def _with_gaps() -> tuple[str, ...]:
    names = iter(COCO_80)
    return tuple(f"unused {i}" if i in _COCO_GAPS else next(names) for i in range(1, 91))


COCO_90: tuple[str, ...] = _with_gaps()
"""COCO's own ids 1..90 from index 0, gaps kept: 0 is person, as TensorFlow Lite numbers them."""

COCO_91: tuple[str, ...] = ("__background__", *COCO_90)
"""COCO's own ids with the background at 0: 1 is person, as torchvision numbers them."""

_VOC = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,"
    "person,pottedplant,sheep,sofa,train,tvmonitor"
)
VOC_20: tuple[str, ...] = tuple(_VOC.split(","))
"""The 20 classes of Pascal VOC in alphabetical order."""

VOC_21: tuple[str, ...] = ("__background__", *VOC_20)
"""Pascal VOC with the background at 0."""

TABLES: dict[int, tuple[str, tuple[str, ...]]] = {
    80: ("COCO", COCO_80),
    90: ("COCO with gaps", COCO_90),
    91: ("COCO with background and gaps", COCO_91),
    20: ("Pascal VOC", VOC_20),
    21: ("Pascal VOC with background", VOC_21),
}
"""Number of classes to (name of the table, its class names)."""


def table_for(count: int) -> tuple[str, tuple[str, ...]]:
    """Return where names for `count` classes come from, and the names: numbered where unknown."""
    if count in TABLES:
        title, names = TABLES[count]
        return f"the {title} table, by count", names
    return "numbered, for want of a table", tuple(f"class {i}" for i in range(count))
