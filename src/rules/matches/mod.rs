//! The matches: one file each, see [`super::extension`].
