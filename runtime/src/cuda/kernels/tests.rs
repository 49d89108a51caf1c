use super::samples;
use crate::cuda::launch::Facts;

#[test]
fn dump() {
    let facts = Facts {
        capability: (9, 0),
        multiprocessors: 132,
        shared_per_block: 232_448,
        threads_per_multiprocessor: 2048,
    };
    let dir = std::env::var("DUMP").expect("DUMP");
    for s in samples(&facts) {
        std::fs::write(format!("{dir}/{}.cu", s.entry), &s.text).expect("write");
    }
}
