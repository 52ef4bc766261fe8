//! Visual question answering against the code of MEVF, QCR and PubMedCLIP.

mod text;
