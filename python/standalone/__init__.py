"""Programs that a host's own Python can run: Python 3.9 or newer, standard library only, each in one file.

Ansible sends these files to hosts on standard input. sdtune imports from here; nothing here imports sdtune.
"""
