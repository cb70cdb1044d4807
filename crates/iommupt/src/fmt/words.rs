//! Words written by hand from the manuals.
