"""Witnesses: whoever remembers the largest checkpoint of a log that was shown to him and signs only what extends it (C2SP
tlog-witness). ``folder``: keys and known logs of a witness of ours; ``state``: what it cosigned, kept before it answers;
``server``: HTTP; ``submit``: the log's side, asking any C2SP witness."""
