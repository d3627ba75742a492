"""A project as a whole: made from the installed package, brought up to date, and examined by `intaglio doctor`."""
