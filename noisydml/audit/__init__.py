"""The labels that are wrong, as a table, a page to fix them on, and figures."""
