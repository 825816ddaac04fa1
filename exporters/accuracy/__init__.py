"""How good a detector is on labelled pictures: the pictures, the classes, COCO's measures."""
