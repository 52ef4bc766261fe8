//! A mistake with its place: built by the language, rendered at the edge.

use std::ops::Range;

use crate::pipeline::Origin;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Nothing runs.
    Error,
    /// The study runs.
    Warning,
}

/// A marked range of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// Index into the sources.
    pub file: usize,
    /// Byte range.
    pub span: Range<usize>,
    /// What stands under the marker; may be empty.
    pub text: String,
}

/// One mistake or doubt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// `E001` to `E017`, `W101` to `W105`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, with the value found.
    pub message: String,
    /// Where; `None` for the command line, which the message then names.
    pub primary: Option<Label>,
    /// Other places that belong to it.
    pub secondary: Vec<Label>,
    /// What would be right.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error or, for a code that begins with `W`, a warning at `origin`.
    pub(crate) fn new(code: &'static str, origin: &Origin, message: impl Into<String>) -> Self {
        let severity = if code.starts_with('W') { Severity::Warning } else { Severity::Error };
        let mut message = message.into();
        let primary = match origin {
            Origin::File { file, span, .. } => {
                Some(Label { file: *file, span: span.clone(), text: String::new() })
            }
            Origin::CommandLine(option) => {
                message = format!("{message} (in `{option}`)");
                None
            }
            Origin::Default => None,
        };
        Self { code, severity, message, primary, secondary: Vec::new(), help: Vec::new() }
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help.extend(help.into());
        self
    }

    #[must_use]
    pub(crate) fn also(mut self, origin: &Origin, text: impl Into<String>) -> Self {
        if let Origin::File { file, span, .. } = origin {
            self.secondary.push(Label { file: *file, span: span.clone(), text: text.into() });
        }
        self
    }

    /// The same as a warning about `what`.
    pub(crate) fn downgrade(self, code: &'static str, what: String) -> Self {
        let message = format!("{what}: {}", self.message);
        Self { code, severity: Severity::Warning, message, ..self }
    }

    /// The order in which diagnostics are shown: by place, the command line first.
    pub(crate) fn place(&self) -> (Option<(usize, usize)>, &'static str, &str) {
        let place = self.primary.as_ref().map(|label| (label.file, label.span.start));
        (place, self.code, &self.message)
    }
}
