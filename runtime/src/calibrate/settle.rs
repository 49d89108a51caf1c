//! When a measured time can be believed.
//!
//! Other work on a machine slows a measurement down, and nothing speeds one up. So everything is
//! measured in rounds, seconds apart; a time is that of the three lowest rounds, and is settled once
//! those three agree. What was disturbed in one round is measured again in the next.

use std::time::Duration;

/// How long is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Three rounds agree where they lie within this share of the lowest.
    pub spread: f64,
    /// Most rounds.
    pub rounds: u32,
    /// No round begins after this.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { spread: 0.1, rounds: 20, time: Duration::from_secs(180) }
    }
}

/// Rounds that have to agree.
const AGREE: usize = 3;

/// One measurement over the rounds.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// What is measured, for people.
    pub what: String,
    /// How many kernels ran at a time; decided once, so that every round measures the same.
    pub copies: u32,
    /// Median of each round, nanoseconds, ascending.
    sorted: Vec<f64>,
}

impl Samples {
    pub fn new(what: &str, copies: u32) -> Samples {
        Samples { what: what.into(), copies, sorted: vec![] }
    }

    pub fn add(&mut self, ns: f64) {
        let at = self.sorted.partition_point(|&x| x < ns);
        self.sorted.insert(at, ns);
    }

    /// The time: the middle one of the three lowest rounds, or of what there is.
    ///
    /// # Panics
    /// Before the first round.
    pub fn ns(&self) -> f64 {
        let low = &self.sorted[..self.sorted.len().min(AGREE)];
        low[low.len() / 2]
    }

    /// How far the three lowest rounds lie apart, as a share of the lowest; infinite before there are
    /// three.
    pub fn spread(&self) -> f64 {
        match self.sorted.get(AGREE - 1) {
            Some(third) => third / self.sorted[0] - 1.0,
            None => f64::INFINITY,
        }
    }
}

/// Times that did not settle.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsteady {
    pub unsettled: usize,
    pub of: usize,
    /// The one that differs most, and by what share.
    pub worst: String,
    pub spread: f64,
    pub rounds: u32,
}

impl std::fmt::Display for Unsteady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.spread.is_infinite() {
            return write!(f, "{} rounds do not show whether times agree: three do", self.rounds);
        }
        write!(
            f,
            "the machine is unsteady: after {} rounds {} of {} times still differ from round to round, most \
             that of {} (by {:.0} %)",
            self.rounds,
            self.unsettled,
            self.of,
            self.worst,
            self.spread * 100.0
        )
    }
}

/// Runs rounds until every time has settled or a limit is reached. `round` is given the number of the
/// round (from 1) and the times so far, and adds one to each that has not settled.
///
/// # Errors
/// Those of a round.
pub fn settle<E>(
    limits: &Limits,
    elapsed: &mut dyn FnMut() -> Duration,
    mut round: impl FnMut(u32, &mut Vec<Samples>) -> Result<(), E>,
) -> Result<(Vec<Samples>, Option<Unsteady>), E> {
    let mut samples: Vec<Samples> = vec![];
    let mut rounds = 0;
    loop {
        rounds += 1;
        round(rounds, &mut samples)?;
        let unsettled = samples.iter().filter(|s| s.spread() > limits.spread);
        let Some(worst) = unsettled.clone().max_by(|a, b| a.spread().total_cmp(&b.spread())) else {
            return Ok((samples, None));
        };
        // Time ends it once three rounds are there: fewer say nothing.
        let last = rounds >= limits.rounds || rounds >= AGREE as u32 && elapsed() >= limits.time;
        if last {
            let unsteady = Unsteady {
                unsettled: unsettled.count(),
                of: samples.len(),
                worst: worst.what.clone(),
                spread: worst.spread(),
                rounds,
            };
            return Ok((samples, Some(unsteady)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    /// Every round takes `second`.
    fn run(
        limits: Limits,
        second: Duration,
        time: impl Fn(u32, usize) -> f64,
    ) -> (Vec<Samples>, Option<Unsteady>, u32) {
        let rounds = Cell::new(0);
        // However often the clock is asked, and whether it is at all.
        let mut elapsed = || second * rounds.get();
        let result: Result<_, Infallible> = settle(&limits, &mut elapsed, |round, samples| {
            rounds.set(round);
            for i in 0..4 {
                if samples.len() == i {
                    samples.push(Samples::new(&format!("kernel {i}"), 1));
                }
                if samples[i].spread() > limits.spread {
                    samples[i].add(time(round, i));
                }
            }
            Ok(())
        });
        let (samples, unsteady) = result.unwrap_or_else(|e| match e {});
        (samples, unsteady, rounds.get())
    }

    #[test]
    fn a_steady_machine_takes_three_rounds() {
        let (samples, unsteady, rounds) = run(Limits::default(), Duration::ZERO, |round, i| {
            100.0 * (i + 1) as f64 + f64::from(round)
        });
        assert_eq!((unsteady, rounds), (None, 3));
        assert_eq!(
            samples.iter().map(Samples::ns).collect::<Vec<_>>(),
            [102.0, 202.0, 302.0, 402.0]
        );
    }

    #[test]
    fn what_is_disturbed_now_and_then_settles_on_the_time_without() {
        // Every other round is slow, by a different factor each time.
        let noisy = |round: u32, i: usize| match round % 2 {
            0 => 100.0 + i as f64,
            _ => 150.0 + 40.0 * f64::from(round),
        };
        let (samples, unsteady, rounds) = run(Limits::default(), Duration::ZERO, noisy);
        assert_eq!((unsteady, rounds), (None, 6));
        assert!(samples.iter().enumerate().all(|(i, s)| s.ns() == 100.0 + i as f64));
    }

    #[test]
    fn a_machine_that_never_agrees_is_unsteady() {
        let wild = |round: u32, i: usize| match i {
            2 => 100.0 * 1.5f64.powi(round as i32),
            _ => 100.0,
        };
        let (_, unsteady, rounds) = run(Limits::default(), Duration::ZERO, wild);
        let u = unsteady.expect("one time never settles");
        assert_eq!((rounds, u.unsettled, u.of, u.worst.as_str()), (20, 1, 4, "kernel 2"));
        assert!((u.spread - 1.25).abs() < 1e-9);
        assert!(u.to_string().contains("1 of 4 times") && u.to_string().contains("125 %"));
        // Time ends it as well, but not before three rounds.
        let (_, unsteady, rounds) = run(Limits::default(), Duration::from_secs(60), wild);
        assert_eq!((rounds, unsteady.map(|u| u.rounds)), (3, Some(3)));
        let (_, _, rounds) = run(Limits::default(), Duration::from_secs(40), wild);
        assert_eq!(rounds, 5);
        // Who asks for one round gets one, and is told what it is worth.
        let limits = Limits { rounds: 1, ..Limits::default() };
        let (samples, unsteady, rounds) = run(limits, Duration::ZERO, wild);
        assert_eq!((rounds, samples[0].ns()), (1, 100.0));
        assert!(unsteady.expect("unknown").to_string().starts_with("1 rounds do not show"));
    }
}
