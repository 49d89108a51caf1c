//! A run that goes on while a test looks at it.

use super::lab::Lab;
use super::{code, command, stderr, stdout};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No wait of these tests takes this long unless what is waited for never comes.
const LONG: Duration = Duration::from_secs(120);

pub struct Running {
    child: Child,
}

/// Asks until the answer is there.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < LONG, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Lines of a log that are whole.
pub fn lines(lab: &Lab, log: &str) -> usize {
    let text = fs::read(lab.path(log)).unwrap_or_default();
    text.iter().filter(|b| **b == b'\n').count()
}

impl Running {
    /// Starts the command in the lab's folder. What it prints goes to files, which never fill up.
    pub fn start(lab: &Lab, args: &[&str]) -> Running {
        let to = |name: &str| Stdio::from(File::create(lab.path(name)).expect("made"));
        let mut command = command(args);
        command.current_dir(lab.dir.path()).stdout(to("stdout")).stderr(to("stderr"));
        // A shell lets what it starts in the background ignore Ctrl-C, and children inherit it.
        let heed = || {
            // SAFETY: `signal` may be called between fork and exec.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: the closure makes one call that is safe for signal handlers, and allocates nothing.
        unsafe { command.pre_exec(heed) };
        Running { child: command.spawn().expect("the binary runs") }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the run has written so many lines of its log.
    pub fn logged(&mut self, lab: &Lab, log: &str, count: usize) {
        until("lines of the log", || {
            assert!(
                self.child.try_wait().expect("a child").is_none(),
                "it ended: {}",
                lab.text("stderr")
            );
            (lines(lab, log) >= count).then_some(())
        });
    }

    /// Waits until the process answers a signal by code of its own.
    pub fn hears(&self, signal: u32) {
        until("a handler", || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
            let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"))?;
            let caught = u64::from_str_radix(caught.trim(), 16).expect("a mask");
            (caught >> (signal - 1) & 1 == 1).then_some(())
        });
    }

    /// Sends a signal, as `kill` names it.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(sent.expect("`kill` is there").success());
    }

    /// Waits for the end; the exit code, or 128 and the signal that ended it, negative.
    pub fn ended(mut self) -> i32 {
        let status = until("the end", || self.child.try_wait().expect("a child"));
        status.code().unwrap_or_else(|| -128 - status.signal().expect("one of the two"))
    }
}

impl Drop for Running {
    /// A test that fails leaves no process.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of a shell, in the lab's folder.
pub fn shell(lab: &Lab, line: &str) -> Output {
    Command::new("sh").args(["-c", line]).current_dir(lab.dir.path()).output().expect("a shell")
}

/// Standard output of a line that succeeds.
pub fn shell_ok(lab: &Lab, line: &str) -> String {
    let o = shell(lab, line);
    assert_eq!(code(&o), 0, "{line}: {}", stderr(&o));
    stdout(&o)
}
