"""The work: one module is one stage and its config class; `catalog` is the table of them all."""
