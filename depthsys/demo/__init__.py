"""The embedded default: a text grammar and small models trained on its text.

Import `depthsys.demo.grammar` for the text; it needs the standard library only. The models
lie in the folder ``models`` beside this file, described in ``models/CARD.md``. This package
imports nothing itself.
"""
