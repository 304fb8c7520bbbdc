"""Operations on archives: info, verify, compare, export, pack."""
