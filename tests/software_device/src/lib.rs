//! A test tool that lets the CUDA backend run without a GPU. See README.md.

pub mod host;
