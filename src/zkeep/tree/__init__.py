"""From objects to paths: directories, files, links, attributes. Knows of no pool and no key."""
