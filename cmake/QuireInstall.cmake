# install and export: find_package(quire) gives quire::quire, headers under include/quire.
