//! A test tool that lets the CUDA backend run without a GPU. See README.md.
//!
//! Nothing here chooses itself: a test compiles kernel text through [`host`], or installs the
//! libraries with [`SoftwareDevice::install`] and puts their folder on the library search path.

// The functions of C interfaces have the documentation and the names of those interfaces.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, non_snake_case)]

mod arena;
mod blas;
mod device;
mod dnn;
mod driver;
mod graph;
pub mod host;
mod nvrtc;
mod refusals;
mod tool;

pub use tool::SoftwareDevice;
