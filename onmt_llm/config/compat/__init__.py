"""Options of OpenNMT-py and other toolkits, translated into ours before anything is validated.

`translate` turns a user's flat options into a `Translation` (`translation`): values in our names, notes, errors. It
uses `names` (tables of renamed, ignored and removed options) and `values` (options whose values change too).
`layer_names` translates the names of layers, `opennmt_defaults` notes defaults that differ in OpenNMT-py, and
`opennmt_table` writes the page of all its options for the documentation.
"""
