//! What the demo says: numbered steps, commands with their output, and what was checked.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context as _, Error, Result};

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// The commentary so far.
#[derive(Debug)]
pub struct Commentary {
    colours: bool,
    began: Instant,
    /// Of the last line, to tell how long what is done now took.
    since: Instant,
    step: usize,
    title: String,
    logs: Option<PathBuf>,
}

impl Commentary {
    /// Begins. Colours are for terminals only.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            colours: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            began: now,
            since: now,
            step: 0,
            title: "preparing".to_owned(),
            logs: None,
        }
    }

    /// The words before the first step.
    pub fn title(&mut self, text: &str) -> Result<()> {
        self.line(text)
    }

    /// A new step: what is shown, and why.
    pub fn step(&mut self, title: &str, why: &str) -> Result<()> {
        self.step += 1;
        self.title = title.to_owned();
        let heading = self.paint(BOLD, &format!("{}. {title}", self.step));
        self.line(&format!("\n{heading}"))?;
        self.say(why)
    }

    /// A sentence.
    pub fn say(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            self.line(&format!("   {}", line.trim()))?;
        }
        Ok(())
    }

    /// A command as it was typed, and what it printed. `place` is where it ran, when that was not here.
    pub fn command(&mut self, place: &str, command: &str, output: &str) -> Result<()> {
        let shown = self.paint(CYAN, &format!("{place}$ {command}"));
        self.line(&format!("   {shown}"))?;
        for line in output.lines() {
            self.line(format!("   {line}").trim_end())?;
        }
        Ok(())
    }

    /// Something that was checked, with the time since the last thing that was.
    pub fn done(&mut self, text: &str) -> Result<()> {
        let took = self.since.elapsed().as_secs_f32();
        let ok = self.paint(GREEN, "ok:");
        let took = self.paint(DIM, &format!("({took:.1} s)"));
        self.line(&format!("   {ok} {text} {took}"))?;
        self.since = Instant::now();
        Ok(())
    }

    /// The last words when every step held.
    pub fn finished(&mut self) -> Result<()> {
        let text = format!(
            "All {} steps held, in {:.0} s.",
            self.step,
            self.began.elapsed().as_secs_f32()
        );
        let text = self.paint(GREEN, &text);
        self.line(&format!("\n{text}"))
    }

    /// Where the logs are, for [`Commentary::failed`].
    pub fn logs_are_in(&mut self, folder: PathBuf) {
        self.logs = Some(folder);
    }

    /// The last words when one did not.
    pub fn failed(&self, error: &Error) {
        let what = match self.step {
            0 => self.title.clone(),
            number => format!("step {number} ({})", self.title),
        };
        let mut text = format!("\nFAILED: {what}: {error:#}\n");
        if let Some(logs) = &self.logs {
            text.push_str(&format!("The logs of everything are in {}\n", logs.display()));
        }
        // With a standard error that is closed there is nobody to tell.
        let _ = io::stderr().write_all(self.paint(RED, &text).as_bytes());
    }

    fn line(&self, line: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .context("writing to the standard output")
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
