//! Builds the programs that the e2e tests run (all, or those named) and prints where they are.

use std::io::{Write as _, stdout};

use anyhow::{Context, Result};
use pointsman_e2e::{Program, Toolchain};

fn main() -> Result<()> {
    let toolchain = Toolchain::locate()?;
    let mut wanted = Vec::new();
    for name in std::env::args().skip(1) {
        let known = Program::ALL.map(Program::name).join(", ");
        let program = Program::ALL.into_iter().find(|program| program.name() == name);
        wanted.push(program.with_context(|| format!("no program {name:?}; there are: {known}"))?);
    }
    if wanted.is_empty() {
        wanted.extend(Program::ALL);
    }
    for program in wanted {
        writeln!(stdout(), "{}", toolchain.program(program)?.display())?;
    }
    Ok(())
}
