//! To be filled by its module's first commit.
