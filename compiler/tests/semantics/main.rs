//! What operations mean, tested over the table of operations: an operation added there is tested
//! here the day it has a case.

mod cases;
mod edges;
mod fuzz;
mod graphs;
mod integers;
mod numerics;
mod random;
mod ranges;
mod rng;
mod table;
mod training;
