//! Progress on a terminal, for what runs longer than two seconds.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::sys::Clock;
use crate::sys::real::RealClock;

/// What is done sooner shows nothing.
const QUIET: Duration = Duration::from_secs(2);

/// A bar that appears when it is worth it. Dropping it clears it.
pub struct Progress {
    clock: RealClock,
    started: Duration,
    bar: Option<ProgressBar>,
    terminal: bool,
}

impl Progress {
    /// Starts counting; `wanted` false never shows anything.
    pub fn start(wanted: bool) -> Progress {
        let clock = RealClock::new();
        let started = clock.monotonic();
        let terminal = wanted && std::io::stderr().is_terminal();
        Progress { clock, started, bar: None, terminal }
    }

    /// Tells how far it is; a `total` of 0 says that nobody knows it.
    pub fn update(&mut self, done: u64, total: u64, what: &str) {
        if !self.terminal || self.clock.monotonic().saturating_sub(self.started) < QUIET {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| bar(total));
        if bar.length().unwrap_or(0) != total && total > 0 {
            bar.set_length(total);
        }
        if bar.message() != what {
            bar.set_message(what.to_owned());
        }
        bar.set_position(done);
    }

    /// Shows that it still goes on, without a number.
    pub fn wait(&mut self, what: &str) {
        self.update(0, 0, what);
        if let Some(bar) = &self.bar {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: u64) -> ProgressBar {
    let (bar, template) = if total == 0 {
        (ProgressBar::new_spinner(), "{spinner} {msg} {binary_bytes} {elapsed}")
    } else {
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
        (ProgressBar::new(total), template)
    };
    // The templates are constants; were one wrong, the plain style would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
