//! A terminal that one screen is drawn on again and again; as it was before when dropped.
//!
//! Knows no content. Control characters are the caller's to keep out (`table::plain`).

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use tokio::sync::mpsc;

/// The other screen, without a cursor; and back (xterm's control sequences, ctlseqs).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// How the keyboard was; `None` when standard input is none.
    keyboard: Option<Termios>,
}

impl Terminal {
    /// The terminal on standard output, if it is one.
    pub(crate) fn open() -> Option<Terminal> {
        if !stdout().is_terminal() {
            return None;
        }
        let keyboard = stdin().is_terminal().then(|| tcgetattr(stdin()).ok()).flatten();
        if let Some(before) = &keyboard {
            let mut keys = before.clone();
            // Keys as they are pressed; ctrl-c stays a signal.
            keys.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
            let _ = tcsetattr(stdin(), OptionalActions::Now, &keys);
        }
        print(ENTER);
        Some(Terminal { keyboard })
    }

    /// Keys that are pressed; ends with the program.
    pub(crate) fn keys(&self) -> mpsc::Receiver<u8> {
        let (sender, keys) = mpsc::channel(8);
        if self.keyboard.is_some() {
            std::thread::spawn(move || {
                let mut key = [0];
                while matches!(stdin().read(&mut key), Ok(1)) {
                    if sender.blocking_send(key[0]).is_err() {
                        break;
                    }
                }
            });
        }
        keys
    }

    /// Shows a text, as much as there is room for.
    pub(crate) fn draw(&self, text: &str) {
        let size = tcgetwinsize(stdout()).ok();
        let room = |cells: u16| if cells == 0 { usize::MAX } else { cells.into() };
        let (rows, columns) = size.map_or((24, 80), |size| (room(size.ws_row), room(size.ws_col)));
        let mut screen = String::from("\x1b[H");
        for (n, line) in text.lines().take(rows).enumerate() {
            let line: String = line.chars().take(columns).collect();
            let _ = write!(screen, "{}{line}\x1b[K", if n == 0 { "" } else { "\r\n" });
        }
        screen += "\x1b[J";
        print(&screen);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        print(LEAVE);
        if let Some(before) = &self.keyboard {
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

fn print(text: &str) {
    let mut out = stdout().lock();
    // Nobody is left to be told when the terminal has gone.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
