//! Threads on which requests may wait.
//!
//! Owns the pool and its queue. The queue has no bound of its own: the kernel has at most
//! `max_background` requests plus one for each waiting task under way, and refusing one here would
//! make a reading thread wait, which it never may.
//!
//! Invariant: a job that was handed in is run, also while the pool is being dropped.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// What a worker runs: the call that may wait, and the reply.
type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads; dropping it runs what is queued and joins them.
pub struct Workers {
    sender: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads.
    pub fn start(count: usize) -> io::Result<Workers> {
        let (sender, receiver) = unbounded::<Job>();
        let mut workers = Workers { sender: Some(sender), threads: Vec::with_capacity(count) };
        for number in 0..count {
            let receiver: Receiver<Job> = receiver.clone();
            let thread = thread::Builder::new().name(format!("wait-{number}"));
            workers.threads.push(thread.spawn(move || receiver.iter().for_each(|job| job()))?);
        }
        Ok(workers)
    }

    /// Hands a job to the next free thread. Never waits.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let refused = match &self.sender {
            Some(sender) => sender.send(Box::new(job)).err().map(|unsent| unsent.0),
            None => Some(Box::new(job) as Job),
        };
        // Only when every thread is gone: waiting here is then better than no answer at all.
        if let Some(job) = refused {
            job();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.sender.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn everything_handed_in_is_run() {
        let done = Arc::new(AtomicUsize::new(0));
        let workers = Workers::start(3).unwrap();
        for _ in 0..1000 {
            let done = Arc::clone(&done);
            workers.run(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        drop(workers);
        assert_eq!(done.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn a_job_that_waits_does_not_stop_the_caller_or_the_others() {
        let workers = Workers::start(2).unwrap();
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        let (done, results) = unbounded();
        let first = done.clone();
        workers.run(move || {
            gate.recv().unwrap();
            first.send("waited").unwrap();
        });
        workers.run(move || done.send("passed").unwrap());
        assert_eq!(results.recv().unwrap(), "passed");
        go.send(()).unwrap();
        assert_eq!(results.recv().unwrap(), "waited");
    }
}
