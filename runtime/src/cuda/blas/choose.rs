//! Which of the library's proposals runs a product.

use super::super::api::Candidate;
use super::super::driver::Stream;
use super::super::launch::Place;
use super::super::product::Product;
use super::super::refusals::Refusals;
use super::{Blas, Call, PROPOSALS, WORKSPACE};
use crate::error::Result;
use cudarc::cublaslt::sys as lt;

impl Blas {
    /// Describes a product and chooses its algorithm. Runs it at least once, which overwrites its
    /// result and loads its kernel, so that a capture finds it loaded; and captures it once, since a
    /// library may refuse that alone. An equal product that was prepared before counts as this one.
    /// Without `measured` the first proposal that runs is taken, as for what rarely runs. The inner
    /// error says why the library runs none.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prepare(
        &self,
        p: &Product,
        address: &dyn Fn(Place) -> u64,
        stream: &Stream,
        measured: bool,
    ) -> Result<std::result::Result<Call, String>> {
        let mut call = match Call::new(self.library(), p, address) {
            Ok(call) => call,
            Err(why) => return Ok(Err(why)),
        };
        let key = format!(
            "{} {} cuBLASLt {} {}",
            self.context.info.name,
            self.context.info.facts.arch(),
            self.version,
            call.describe(p)
        );
        if let Some(&algorithm) = self.chosen.borrow().get(&key) {
            call.algorithm = algorithm;
            return Ok(Ok(call));
        }
        if let Some(algorithm) = self.remembered(&call, key.as_bytes()) {
            call.algorithm = algorithm;
            match call.run(stream).and_then(|()| self.rehearse(&call, stream)) {
                Ok(()) => {
                    self.chosen.borrow_mut().insert(key, algorithm);
                    return Ok(Ok(call));
                }
                Err(e) => tracing::debug!("what cuBLASLt ran before is refused: {e}"),
            }
        }
        // Untuned the first is taken, but one may still be refused when it is run.
        let proposals = match call.propose(PROPOSALS) {
            Ok(list) => list,
            Err(why) => return Ok(Err(why)),
        };
        let timed = self.tune && measured && proposals.len() > 1;
        let algorithm = match self.fastest(&mut call, &proposals, stream, timed)? {
            Ok(algorithm) => algorithm,
            Err(why) => {
                self.cache.forget("product", key.as_bytes());
                return Ok(Err(why));
            }
        };
        call.algorithm = algorithm;
        if timed {
            let bytes: Vec<u8> = algorithm.data.iter().flat_map(|w| w.to_le_bytes()).collect();
            self.cache.put("product", key.as_bytes(), &bytes);
        }
        self.chosen.borrow_mut().insert(key, algorithm);
        Ok(Ok(call))
    }

    /// Whether a product that ran can be captured.
    fn rehearse(&self, call: &Call, stream: &Stream) -> Result<()> {
        self.watch.rehearse(stream, &|| call.run(stream))
    }

    /// The choice of an earlier run, if this library accepts it.
    fn remembered(&self, call: &Call, key: &[u8]) -> Option<lt::cublasLtMatmulAlgo_t> {
        if !self.tune {
            return None;
        }
        let bytes = self.cache.get("product", key)?;
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8"))).collect();
        let algorithm = lt::cublasLtMatmulAlgo_t { data: words.try_into().ok()? };
        let mut result = Candidate::NONE;
        // SAFETY: the descriptors are alive; the result is a local.
        let status = unsafe {
            self.api.cublasLtMatmulAlgoCheck(
                self.handle,
                call.desc.raw,
                call.a.raw,
                call.b.raw,
                call.d.raw,
                call.d.raw,
                &raw const algorithm,
                &raw mut result,
            )
        };
        (status == 0 && result.status == 0 && result.workspace as u64 <= WORKSPACE)
            .then_some(algorithm)
    }

    /// The fastest proposal that runs, and can be captured; of equals the first. Where they are
    /// not `timed`, the first that does; where none does, the library's words.
    fn fastest(
        &self,
        call: &mut Call,
        proposals: &[Candidate],
        stream: &Stream,
        timed: bool,
    ) -> Result<std::result::Result<lt::cublasLtMatmulAlgo_t, String>> {
        let mut ran: Vec<(f64, usize)> = vec![];
        let mut refused = Refusals::default();
        for (i, p) in proposals.iter().enumerate() {
            call.algorithm = p.algorithm;
            let run = || call.run(stream);
            // The first run loads the kernel.
            let seconds = match (run(), timed) {
                (Ok(()), true) => self.watch.time(stream, &run),
                (Ok(()), false) => self.watch.rehearse(stream, &run).map(|()| 0.0),
                (Err(e), _) => Err(e),
            };
            match seconds {
                Ok(seconds) => ran.push((seconds, i)),
                Err(e) => {
                    tracing::debug!("a proposal of cuBLASLt is refused: {e}");
                    refused.add(i, e.message);
                    continue;
                }
            }
            if !timed {
                break;
            }
            self.measured.set(self.measured.get() + 1);
        }
        ran.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let Some(&(_, i)) = ran.first() {
            return Ok(Ok(proposals[i].algorithm));
        }
        Ok(Err(refused.words().unwrap_or_else(|| "cuBLASLt proposes no algorithm".into())))
    }
}
