"""The fast levels of zstd (zfs: enum zio_zstd_levels): apart from compress, which most verbs never import."""

ZSTD_FAST = (*range(1, 11), *range(20, 101, 10), 500, 1000)
"The levels zstd-fast-N that there are."
FIRST_FAST = 103
"The code of zstd-fast-1; the others follow it in this order."
