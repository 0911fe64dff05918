"""From objects to paths: directories, files, links, attributes. Imports no pool and no key."""
