//! The targets: one file each, see [`super::extension`].
