//! Options of heads: classifiers of the user's own classes on the model's features.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::values::parse_share;

/// The options of heads.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Your own classes")]
pub struct HeadArgs {
    /// Serve the head in FILE, which `imgclass train` has written, under NAME (repeatable)
    ///
    /// One forward pass serves the checkpoint's own classes and all heads. A request names a head
    /// by `"model": "NAME"`. SIGHUP reads all heads again. The variable separates several by commas.
    #[arg(
        long = "head",
        value_name = "NAME=FILE",
        value_delimiter = ',',
        env = "IMGCLASS_HEADS"
    )]
    pub heads: Vec<NamedHead>,

    /// Answer `unknown` if at least this share of the head's own images fit better, where a request
    /// does not say `min_known`: with 0.05, 5 % of the images of its classes are refused
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.0,
        value_parser = parse_share,
        env = "IMGCLASS_UNKNOWN_BELOW"
    )]
    pub unknown_below: f32,

    /// Read a head's file again within seconds of its change
    #[arg(long, env = "IMGCLASS_WATCH_HEADS")]
    pub watch_heads: bool,
}

/// A head and the name by which requests ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedHead {
    /// The name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for NamedHead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a name, an equals sign and a file, such as plants=plants.head";
        let (name, path) = text.split_once('=').ok_or(expected)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // A form's `model=2024` would be read as a number, and `/v2/models/stats` is a path of its
        // own.
        let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let is_keyword = ["true", "false", "null", "stats"].contains(&name);
        if !begins_well
            || is_keyword
            || name.len() > 64
            || !name.chars().all(allowed)
            || path.is_empty()
        {
            return Err(format!(
                "{expected}; a name begins with a letter, and has up to 64 letters, digits, dots, \
                 dashes and underscores"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.into(),
        })
    }
}

impl HeadArgs {
    /// Checks that no two models have one name.
    ///
    /// # Errors
    /// A text that says which name is there twice.
    pub fn check_names(&self, served_model_name: &str) -> Result<(), String> {
        for (i, head) in self.heads.iter().enumerate() {
            if head.name == served_model_name {
                return Err(format!(
                    "--head {0}=...: {0:?} is the name of the model itself (--served-model-name)",
                    head.name
                ));
            }
            if self.heads[..i].iter().any(|other| other.name == head.name) {
                return Err(format!(
                    "--head: there are two heads of the name {:?}",
                    head.name
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_name_and_a_file() {
        let head: NamedHead = "plants=a=b.head".parse().unwrap();
        assert_eq!(
            (head.name.as_str(), head.path.to_str()),
            ("plants", Some("a=b.head"))
        );
        for wrong in [
            "",
            "plants",
            "=x",
            "plants=",
            "pl ants=x",
            "pl/ants=x",
            "pl:x=y",
            "2024=x",
            "true=x",
        ] {
            assert!(wrong.parse::<NamedHead>().is_err(), "{wrong}");
        }
    }
}
