//! The licences of articles, from the list of open-access files that PubMed Central publishes.

use std::path::Path;

use pipe_engine::StageError;
use pipe_engine::cache::Digest;

use crate::ingest::lines::Lines;
use crate::ingest::numbered::Numbered;
use crate::ingest::seen::key;
use crate::ingest::source::SourceFiles;

/// The published name of the list: a line of its date, then path, citation, number, PubMed's number and licence
/// with tabs between them.
const LIST: &str = "oa_file_list.txt";

/// Licences by the number of the article. The list has millions of articles and few licences.
pub(super) struct Licences {
    names: Vec<String>,
    /// By the key of the article the place of its licence.
    articles: Numbered,
}

impl Licences {
    /// Reads the list, if it is there. A line that is none of an article is passed over: the list begins with one.
    /// What is too long for memory goes to a file in `scratch`.
    pub(super) fn read(files: &SourceFiles, scratch: &Path) -> Result<Self, StageError> {
        let mut licences = Self { names: Vec::new(), articles: Numbered::new(scratch) };
        let Some(file) = files.ending(LIST)? else { return Ok(licences) };
        let mut lines = Lines::open(&file)?;
        while let Some((number, line)) = lines.next_text()? {
            let line = line.map_err(|reason| file.error(format!("row {number}: {reason}")))?;
            let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
            let [_, _, article, _, licence, ..] = fields[..] else { continue };
            let Some(article) = number_of(article).filter(|_| !licence.is_empty()) else { continue };
            let place = match licences.names.iter().position(|name| name == licence) {
                Some(place) => place,
                None => {
                    licences.names.push(licence.to_owned());
                    licences.names.len() - 1
                }
            };
            let place = u16::try_from(place)
                .map_err(|_| file.error(format!("row {number}: it has more licences than any such list")))?;
            // Of several the one that the list names first.
            if licences.articles.get(key_of(article))?.is_none_or(|known| u64::from(place) < known) {
                licences.articles.set(key_of(article), u64::from(place))?;
            }
        }
        Ok(licences)
    }

    /// The licence of `PMC9100000`.
    pub(super) fn of(&mut self, article: Option<&str>) -> Result<Option<String>, StageError> {
        let Some(article) = article.and_then(number_of) else { return Ok(None) };
        let place = self.articles.get(key_of(article))?;
        Ok(place.map(|place| self.names[place as usize].clone()))
    }
}

fn key_of(article: u64) -> u64 {
    key(&Digest::of(&article.to_le_bytes()))
}

fn number_of(article: &str) -> Option<u64> {
    article.strip_prefix("PMC")?.parse().ok()
}
