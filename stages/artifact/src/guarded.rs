//! Other people's readers may panic on a damaged file; a user gets an error instead.

use std::cell::Cell;
use std::sync::Once;

use anyhow::{Result, bail};

thread_local! {
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a reader of `what`. Errors: its own, or that it panicked; nothing is printed then.
pub fn guarded<T>(what: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    // The hook is the whole process's, and other threads may be at work: only a reader's panics are passed over.
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_READING.get() {
                hook(panic);
            }
        }));
    });
    IS_READING.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    IS_READING.set(false);
    match result {
        Ok(result) => result,
        Err(_) => bail!("malformed, the {what} gave up on it"),
    }
}
