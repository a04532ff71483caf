//! Writes the CustomResourceDefinitions, generated from the Rust types, as YAML files.

use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

const USAGE: &str = "usage: crdgen DIR
Writes the CustomResourceDefinitions of pointsman.dev as YAML files into DIR.
Example: cargo run -p pointsman-crds --bin crdgen -- crds/yaml";

fn write(directory: PathBuf) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(&directory)?;
    for (name, text) in pointsman_crds::generated_yaml()? {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(directory) = env::args_os()
        .nth(1)
        .filter(|word| word != "--help" && word != "-h")
    else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match write(directory.clone().into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "writing the CustomResourceDefinitions to {}: {error}",
                directory.display()
            );
            ExitCode::FAILURE
        }
    }
}
