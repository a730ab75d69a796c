"""The index: SQLite, derived, finds entries (STORAGE rule 18).

It says where a line lies, narrows a question and holds counts; what an entry says is always decoded from the line. Whatever it
holds can be deleted and comes back. ``verify`` derives every row again and compares, so that an index can neither alter nor hide an
entry unseen.

Three tables (``docs/format.md`` part 8, decision 9). ``blocks``: up to 1,024 consecutive entries of one segment: where their lines
lie, between which times they are, and how many there are of each kind. ``postings``: for a value of a field, the entries of a chunk
of 16,384 that have it. ``ids``: event ids. Values are kept as 63-bit numbers made from them: two that meet in one number only make
a candidate that the line then refuses.

``derive`` lines → rows · ``fill`` rows → file · ``search`` question → places · ``compare`` file against lines · ``file`` opening,
locking, schema · ``connection`` SQLite and fork.
"""
