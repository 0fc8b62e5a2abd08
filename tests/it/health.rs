//! Backends are asked whether they are well.
