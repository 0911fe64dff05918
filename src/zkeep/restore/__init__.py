"""An opened snapshot, and what is made of it: lists, files, images. Whatever leaves here was authenticated."""
