//! The terminal on a VM's serial console.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Ctrl-], as telnet and `virsh console`.
const LEAVE: u8 = 0x1d;

/// Puts the terminal back as it was, however the console is left.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = termios::tcgetattr(&stdin).context("terminal settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw).context("terminal settings")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone; there is nobody left to tell.
            termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// Copies between the terminal and the console until either ends or Ctrl-] is typed.
pub(crate) async fn attach(socket: &Path) -> anyhow::Result<()> {
    let stream = UnixStream::connect(socket).await.with_context(|| format!("console {}", socket.display()))?;
    if std::io::stdin().is_terminal() {
        eprintln!("connected; Ctrl-] leaves");
    }
    let terminal = RawTerminal::enter()?;
    let (mut from_vm, mut to_vm) = stream.into_split();
    let output = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = [0; 4096];
        loop {
            let read = from_vm.read(&mut buffer).await?;
            if read == 0 {
                return anyhow::Ok(());
            }
            stdout.write_all(&buffer[..read]).await?;
            stdout.flush().await?;
        }
    };
    let input = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 1024];
        loop {
            let read = stdin.read(&mut buffer).await?;
            if read == 0 {
                // Input from a file or pipe ends; what the VM still says is worth waiting for.
                std::future::pending::<()>().await;
            }
            if let Some(leave) = buffer[..read].iter().position(|b| *b == LEAVE) {
                to_vm.write_all(&buffer[..leave]).await?;
                return anyhow::Ok(());
            }
            to_vm.write_all(&buffer[..read]).await?;
        }
    };
    let ended = tokio::select! {
        ended = output => ended,
        ended = input => ended,
    };
    drop(terminal);
    // A blocked read of standard input would hold the runtime's shutdown until the next key.
    ended?;
    std::process::exit(0)
}
