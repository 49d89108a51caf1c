//! What operations mean, tested over the table of operations: an operation added there is tested
//! here the day it has a case.

mod cases;
mod fuzz;
mod rng;
mod table;
