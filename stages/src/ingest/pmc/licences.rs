//! The licences of articles, from the list of open-access files that PubMed Central publishes.

use pipe_engine::StageError;

use crate::ingest::lines::Lines;
use crate::ingest::source::SourceFiles;

/// The published name of the list: a line of its date, then path, citation, number, PubMed's number and licence
/// with tabs between them.
const LIST: &str = "oa_file_list.txt";

/// Licences by the number of the article. The list has millions of articles and few licences.
#[derive(Default)]
pub(super) struct Licences {
    names: Vec<String>,
    /// Number of the article and place of its licence, sorted.
    articles: Vec<(u64, u16)>,
}

impl Licences {
    /// Reads the list, if it is there. A line that is none of an article is passed over: the list begins with one.
    pub(super) fn read(files: &SourceFiles) -> Result<Self, StageError> {
        let mut licences = Self::default();
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
            licences.articles.push((article, place));
        }
        licences.articles.sort_unstable();
        Ok(licences)
    }

    /// The licence of `PMC9100000`.
    pub(super) fn of(&self, article: Option<&str>) -> Option<String> {
        let number = number_of(article?)?;
        let first = self.articles.partition_point(|(known, _)| *known < number);
        let (known, place) = self.articles.get(first)?;
        (*known == number).then(|| self.names[usize::from(*place)].clone())
    }
}

fn number_of(article: &str) -> Option<u64> {
    article.strip_prefix("PMC")?.parse().ok()
}
