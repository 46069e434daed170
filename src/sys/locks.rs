//! Locks, condition variables, atomic numbers and threads, where their order is worth a test.
//!
//! Owns nothing in the program itself: these are the types of `parking_lot` and `std`. Built with
//! `--cfg shuttle` they are shuttle's in the same shape, which runs the threads of a test one at a
//! time in an order of its choice (`mount-scripts/shuttle`).
//!
//! Invariant: a lock that is held while another one of these is taken, or while a thread waits, is
//! one of these too; all others would block the one thread that all of a test run on.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic;
#[cfg(not(shuttle))]
pub(crate) use std::thread;

#[cfg(shuttle)]
pub(crate) use scheduled::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic;
#[cfg(shuttle)]
pub(crate) use shuttle::thread;

#[cfg(shuttle)]
mod scheduled {
    use std::fmt;
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::time::Duration;

    use shuttle::sync;
    pub use sync::RwLockReadGuard;

    const HELD: &str = "the guard holds the lock";

    #[derive(Debug, Default)]
    pub struct Mutex<T>(sync::Mutex<T>);

    pub struct MutexGuard<'a, T> {
        lock: &'a sync::Mutex<T>,
        /// None only while [`MutexGuard::unlocked`] or [`Condvar::wait`] has it.
        guard: Option<sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Mutex<T> {
            Mutex(sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            MutexGuard { lock: &self.0, guard: Some(guard) }
        }

        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            let guard = self.0.try_lock().ok()?;
            Some(MutexGuard { lock: &self.0, guard: Some(guard) })
        }
    }

    impl<T> MutexGuard<'_, T> {
        pub fn unlocked<U>(this: &mut Self, work: impl FnOnce() -> U) -> U {
            this.guard = None;
            let done = work();
            this.guard = Some(this.lock.lock().unwrap_or_else(PoisonError::into_inner));
            done
        }

        /// Any order may follow here, so that one cannot ask for the fair one.
        pub fn unlock_fair(this: Self) {
            drop(this);
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.guard.as_ref().expect(HELD)
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().expect(HELD)
        }
    }

    #[derive(Default)]
    pub struct Condvar(sync::Condvar);

    pub struct WaitResult(bool);

    impl WaitResult {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl Condvar {
        pub fn new() -> Condvar {
            Condvar::default()
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.guard.take().expect(HELD);
            guard.guard = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }

        /// No time passes: whoever waits is woken by others alone.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitResult {
            self.wait(guard);
            WaitResult(false)
        }

        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl fmt::Debug for Condvar {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Condvar")
        }
    }

    #[derive(Debug, Default)]
    pub struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub fn new(value: T) -> RwLock<T> {
            RwLock(sync::RwLock::new(value))
        }

        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
