//! The tables of the standard classifier: codes, HTTP statuses, exit codes and signals, types of errors.
//!
//! They are told in `docs/workers.md`, under "How failures are sorted".

use std::{error::Error, io, io::ErrorKind, time::Duration};

use stepfleet_protocol::failure::Category;

use super::Exit;

/// The wait after a 429 that names none.
pub(crate) const RATE_LIMIT_WAIT: Duration = Duration::from_secs(30);
/// Causes of one error that are looked at.
const CAUSES_MAX: usize = 16;

/// By a code that the handler set: the name of a category, or the name of a system error (`errno`).
pub(super) fn of_code(code: &str) -> Option<Category> {
    match code {
        "ECONNREFUSED" | "ECONNRESET" | "ECONNABORTED" | "EPIPE" | "EHOSTUNREACH" | "ENETUNREACH" | "ENETDOWN"
        | "EAGAIN" | "EINTR" | "EBUSY" => Some(Category::Transient),
        "ETIMEDOUT" => Some(Category::Timeout),
        "ENOSPC" | "EDQUOT" | "ENOMEM" | "EMFILE" | "ENFILE" | "EROFS" | "EIO" => Some(Category::System),
        "EACCES" | "EPERM" | "ENOENT" | "EEXIST" | "ENOSYS" => Some(Category::Permanent),
        "EINVAL" | "EBADMSG" | "EILSEQ" => Some(Category::Data),
        _ => Category::ALL.into_iter().find(|category| category.as_str() == code),
    }
}

/// By the status of an HTTP answer that was not the one that was wished for.
pub(super) fn of_status(status: u16) -> Category {
    match status {
        408 => Category::Timeout,
        // 423: locked; 425: too early. Both say: again, later.
        423 | 425 => Category::Transient,
        429 => Category::RateLimited,
        507 => Category::System,
        500..=599 => Category::Transient,
        _ => Category::Permanent,
    }
}

/// By how a program ended: `sysexits.h`, and what shells and `timeout` add. Above 128 a shell tells the signal.
pub(super) fn of_exit(exit: Exit) -> Category {
    match exit {
        // EX_USAGE, EX_NOUSER, EX_NOHOST, EX_CANTCREAT, EX_NOPERM, EX_CONFIG; 126 and 127: cannot be run, not found.
        Exit::Code(64 | 67 | 68 | 73 | 77 | 78 | 126 | 127) => Category::Permanent,
        // EX_DATAERR, EX_NOINPUT.
        Exit::Code(65 | 66) => Category::Data,
        // EX_OSERR, EX_OSFILE.
        Exit::Code(71 | 72) => Category::System,
        // Of `timeout`.
        Exit::Code(124) => Category::Timeout,
        Exit::Code(code @ 129..=159) => of_signal(code - 128),
        // EX_UNAVAILABLE, EX_SOFTWARE, EX_IOERR, EX_TEMPFAIL, EX_PROTOCOL, and every other.
        Exit::Code(_) => Category::Transient,
        Exit::Signal(signal) => of_signal(signal),
    }
}

fn of_signal(signal: i32) -> Category {
    match signal {
        // SIGKILL: whoever sends it to a stranger is the system, which is out of memory.
        9 => Category::System,
        // SIGXCPU: past its limit of processor time.
        24 => Category::Timeout,
        // SIGXFSZ: past its limit of file size.
        25 => Category::System,
        _ => Category::Transient,
    }
}

/// By the type of an error, or of the first of its causes that the tables know.
pub(super) fn of_error(error: &(dyn Error + 'static)) -> Option<Category> {
    let mut next = Some(error);
    for _ in 0..CAUSES_MAX {
        let cause = next?;
        if let Some(category) = of_type(cause) {
            return Some(category);
        }
        // An I/O error that wraps another one gives that one's cause as its own, and so hides it.
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    None
}

fn of_type(error: &(dyn Error + 'static)) -> Option<Category> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return of_kind(error.kind());
    }
    if error.is::<tokio::time::error::Elapsed>() {
        return Some(Category::Timeout);
    }
    let error = error.downcast_ref::<reqwest::Error>()?;
    if let Some(status) = error.status() {
        Some(of_status(status.as_u16()))
    } else if error.is_timeout() {
        Some(Category::Timeout)
    } else if error.is_builder() || error.is_redirect() {
        Some(Category::Permanent)
    } else {
        None
    }
}

fn of_kind(kind: ErrorKind) -> Option<Category> {
    match kind {
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::NotConnected
        | ErrorKind::BrokenPipe
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::AddrInUse
        | ErrorKind::AddrNotAvailable
        | ErrorKind::ResourceBusy
        | ErrorKind::ExecutableFileBusy
        | ErrorKind::StaleNetworkFileHandle
        | ErrorKind::Deadlock
        | ErrorKind::Interrupted
        | ErrorKind::WouldBlock
        | ErrorKind::UnexpectedEof => Some(Category::Transient),
        ErrorKind::TimedOut => Some(Category::Timeout),
        ErrorKind::StorageFull
        | ErrorKind::QuotaExceeded
        | ErrorKind::OutOfMemory
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::FileTooLarge => Some(Category::System),
        ErrorKind::InvalidData | ErrorKind::InvalidInput => Some(Category::Data),
        ErrorKind::PermissionDenied
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::ArgumentListTooLong
        | ErrorKind::Unsupported => Some(Category::Permanent),
        // The standard library's list may grow, and `Other` says nothing.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer<E: Error + 'static>(#[source] E);

    #[test]
    fn errors_are_sorted_by_the_first_cause_that_is_known() {
        for (kind, category) in [
            (ErrorKind::ConnectionRefused, Category::Transient),
            (ErrorKind::ConnectionReset, Category::Transient),
            (ErrorKind::UnexpectedEof, Category::Transient),
            (ErrorKind::TimedOut, Category::Timeout),
            (ErrorKind::StorageFull, Category::System),
            (ErrorKind::OutOfMemory, Category::System),
            (ErrorKind::InvalidData, Category::Data),
            (ErrorKind::InvalidInput, Category::Data),
            (ErrorKind::PermissionDenied, Category::Permanent),
            (ErrorKind::NotFound, Category::Permanent),
        ] {
            assert_eq!(of_error(&io::Error::from(kind)), Some(category), "{kind:?}");
            assert_eq!(of_error(&Outer(Outer(io::Error::from(kind)))), Some(category), "{kind:?} under two others");
            let hidden = io::Error::other(Outer(io::Error::from(kind)));
            assert_eq!(of_error(&hidden), Some(category), "{kind:?} inside an I/O error");
        }
        let outermost = Outer(io::Error::new(ErrorKind::TimedOut, io::Error::from(ErrorKind::StorageFull)));
        assert_eq!(of_error(&outermost), Some(Category::Timeout));
        // What a text says decides nothing.
        assert_eq!(of_error(&io::Error::other("429 rate limit: timed out, out of memory")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_time_in_a_handler_is_a_timeout() {
        let elapsed = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
        assert_eq!(of_error(&Outer(elapsed.expect_err("nothing comes"))), Some(Category::Timeout));
    }

    #[test]
    fn statuses_are_sorted() {
        for (status, category) in [
            (408, Category::Timeout),
            (425, Category::Transient),
            (429, Category::RateLimited),
            (500, Category::Transient),
            (502, Category::Transient),
            (503, Category::Transient),
            (507, Category::System),
            (400, Category::Permanent),
            (401, Category::Permanent),
            (404, Category::Permanent),
            (422, Category::Permanent),
            (301, Category::Permanent),
            (200, Category::Permanent),
        ] {
            assert_eq!(of_status(status), category, "{status}");
        }
    }

    #[test]
    fn exits_are_sorted() {
        for (exit, category) in [
            (Exit::Code(1), Category::Transient),
            (Exit::Code(64), Category::Permanent),
            (Exit::Code(65), Category::Data),
            (Exit::Code(66), Category::Data),
            (Exit::Code(69), Category::Transient),
            (Exit::Code(71), Category::System),
            (Exit::Code(75), Category::Transient),
            (Exit::Code(77), Category::Permanent),
            (Exit::Code(78), Category::Permanent),
            (Exit::Code(124), Category::Timeout),
            (Exit::Code(127), Category::Permanent),
            (Exit::Code(137), Category::System),
            (Exit::Code(143), Category::Transient),
            (Exit::Code(255), Category::Transient),
            (Exit::Signal(9), Category::System),
            (Exit::Signal(11), Category::Transient),
            (Exit::Signal(24), Category::Timeout),
        ] {
            assert_eq!(of_exit(exit), category, "{exit:?}");
        }
    }

    #[test]
    fn codes_are_names_and_match_whole() {
        for category in Category::ALL {
            assert_eq!(of_code(category.as_str()), Some(category));
        }
        assert_eq!(of_code("ENOSPC"), Some(Category::System));
        assert_eq!(of_code("EACCES"), Some(Category::Permanent));
        assert_eq!(of_code("my_timeout"), None);
        assert_eq!(of_code("timeouts"), None);
    }
}
