//! Child processes that never outlive their owner.
//!
//! Dropping a running [`Child`] kills and reaps it, by its id, with whatever it started in its process group. If the test
//! process itself dies, the kernel kills the child (Linux only). That kernel promise is tied to the *thread* that spawned, so all children are spawned by one thread that lives as
//! long as the process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, OnceLock, mpsc};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A running or ended child process.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    exit: Option<ExitStatus>,
}

impl Child {
    /// Starts `command`.
    pub(crate) fn spawn(command: Command) -> io::Result<Self> {
        static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
        let (answer, answered) = mpsc::sync_channel(1);
        SPAWNER
            .get_or_init(|| Mutex::new(start_spawner()))
            .lock()
            .expect("nobody panics while sending an order")
            .send(Order { command, answer })
            .expect("the spawner lives as long as the process");
        let process = answered.recv().expect("the spawner answers every order")?;
        Ok(Self { process, exit: None })
    }

    /// The process id. After the end was seen it may belong to somebody else.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, or `None` while it runs.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self.process.try_wait()?;
        }
        Ok(self.exit)
    }

    /// Sends `signal`; nothing happens if it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // A child that is not reaped keeps its id, so the id cannot be somebody else's here.
        if self.ended()?.is_none() {
            kill(Pid::from_raw(self.process.id().cast_signed()), signal)?;
        }
        Ok(())
    }

    /// Kills it, paused or not, and waits until it is gone.
    pub(crate) fn kill_9(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)?;
        if self.exit.is_none() {
            self.exit = Some(self.process.wait()?);
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The group has the id of its leader, which is not reaped yet and so cannot be somebody else's. What it started goes
        // with it: a test that failed leaves nothing behind.
        let group = Pid::from_raw(self.process.id().cast_signed());
        let leftovers = match self.ended() {
            Ok(None) => killpg(group, Signal::SIGKILL).map_err(io::Error::from),
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = leftovers.and_then(|()| self.kill_9()) {
            eprintln!("child {} could not be ended: {error}", self.pid());
        }
    }
}

struct Order {
    command: Command,
    answer: mpsc::SyncSender<io::Result<std::process::Child>>,
}

fn start_spawner() -> mpsc::Sender<Order> {
    let (orders, inbox) = mpsc::channel::<Order>();
    std::thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            for Order { mut command, answer } in inbox {
                command.process_group(0);
                die_with_parent(&mut command);
                // Nobody waits for the answer only if the asking thread is gone; its child is then unwanted.
                if let Err(mpsc::SendError(Ok(mut unwanted))) = answer.send(command.spawn()) {
                    let _ = unwanted.kill();
                    let _ = unwanted.wait();
                }
            }
        })
        .expect("the system has room for one more thread");
    orders
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the standard library offers no other way to ask the kernel to kill a child with us")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl is one bare system call.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
