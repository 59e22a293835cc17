//! Other programs: run one and insist that it succeeded, or take what it printed, or both see and
//! take.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` on our own terminal; anything but exit status 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns its standard output; on failure its standard error is in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", shown(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, prints what it prints as it comes, and returns all of it, both streams in one.
pub(crate) fn echoed(mut command: Command) -> Result<(ExitStatus, String)> {
    let (from, to) = io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(&command)))?;
    // Our own copies of the pipe's writing end must go, or it never ends.
    drop(command);
    let said = echo(BufReader::new(from))?;
    let status = child.wait().context("cannot wait for a child")?;
    Ok((status, said))
}

fn echo(mut from: impl BufRead) -> Result<String> {
    let mut said = String::new();
    let mut line = Vec::new();
    let mut out = io::stdout();
    loop {
        line.clear();
        if from.read_until(b'\n', &mut line).context("cannot read a child's output")? == 0 {
            return Ok(said);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        said.push_str(text);
        said.push('\n');
        // A reader of ours that has gone must not end the child: its verdict still counts.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// The command line as one would type it, without its environment.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
