"""``python -m svi.examples`` writes the bundled example again."""

from svi.examples import write_example

write_example()
