"""Options of OpenNMT-py and other toolkits, translated into ours before anything is validated.

`translate` turns a user's flat options into a `Translation`: values in our names, notes, errors. It uses `names`
(tables of renamed, ignored and removed options; names of layers) and `values` (options whose values change too).
`opennmt_defaults` notes defaults that differ in OpenNMT-py; `opennmt_table` writes the page of all its options for the
documentation.
"""
