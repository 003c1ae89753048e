"""The parts of a page, each the numbers of one kind of measurement laid out as tables."""
