//! Signals that a run answers: the end of its time, and a checkpoint that is asked for.

/// A signal that ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn name(self) -> &'static str {
        if self.0 == 2 { "SIGINT" } else { "SIGTERM" }
    }

    /// What shells report of a process that the signal ended.
    pub fn exit_code(self) -> u8 {
        128 + self.0 as u8
    }
}

#[cfg(unix)]
mod unix {
    use super::Signal;
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::flag;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    const MAY: &str = "these signals may be handled";

    /// What has come since the run listens.
    #[derive(Debug, Default)]
    pub struct Signals {
        /// The signal that ends the run; 0 for none.
        end: Arc<AtomicUsize>,
        /// Whether the next such signal ends the process at once.
        at_once: Arc<AtomicBool>,
        checkpoint: Arc<AtomicBool>,
    }

    impl Signals {
        /// Hears SIGUSR1, which asks for a checkpoint and would otherwise end the process.
        pub fn checkpoints() -> Signals {
            let signals = Signals::default();
            flag::register(SIGUSR1, signals.checkpoint.clone()).expect(MAY);
            signals
        }

        /// Hears SIGINT and SIGTERM. The second of them ends the process at once.
        pub fn listen(&self) {
            for signal in [SIGINT, SIGTERM] {
                // What is registered first runs first.
                flag::register_conditional_shutdown(signal, 128 + signal, self.at_once.clone())
                    .expect(MAY);
                flag::register(signal, self.at_once.clone()).expect(MAY);
                flag::register_usize(signal, self.end.clone(), signal as usize).expect(MAY);
            }
        }

        /// The signal that came, if one did.
        pub fn end(&self) -> Option<Signal> {
            match self.end.load(Ordering::SeqCst) {
                0 => None,
                signal => Some(Signal(signal as i32)),
            }
        }

        /// From here on nothing is left that could be lost: the first signal ends the process.
        pub fn end_at_once(&self) {
            self.at_once.store(true, Ordering::SeqCst);
        }

        /// Whether a checkpoint has been asked for since this was last asked.
        pub fn takes_checkpoint(&self) -> bool {
            self.checkpoint.swap(false, Ordering::SeqCst)
        }
    }
}

#[cfg(unix)]
pub use unix::Signals;

/// Other systems have their own ways to end a process; none is answered.
#[cfg(not(unix))]
#[derive(Debug, Default)]
pub struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub fn checkpoints() -> Signals {
        Signals
    }

    pub fn listen(&self) {}

    pub fn end(&self) -> Option<Signal> {
        None
    }

    pub fn end_at_once(&self) {}

    pub fn takes_checkpoint(&self) -> bool {
        false
    }
}
